"""Mean and standard deviation, on any device and over ranks."""
