"""What builds, draws and photographs; each file is a command of its own."""
