"""How the demo model is made. Nothing here is needed to run the captioning job."""
