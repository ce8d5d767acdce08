"""The code of a model archive: image bytes in, class probabilities out."""
