"""Where workers run. Every executor runs the same worker body and looks the same to the driver."""
