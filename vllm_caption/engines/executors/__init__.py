"""Where workers run. Every executor runs the same worker code and looks the same to the driver."""
