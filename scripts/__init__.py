"""Commands that build archives, draw samples and take screenshots."""
