"""What goes into a model archive: image bytes in, class probabilities out."""
