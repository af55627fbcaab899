"""From the name of an image to the pixels that the model sees."""
