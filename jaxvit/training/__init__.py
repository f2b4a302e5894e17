"""The training engine. It receives functions and arrays; it knows neither models nor data sets."""
