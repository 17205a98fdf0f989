"""Suite audio-visual: specialists of images, sounds and point sets, merged into one that reads them all."""
