"""Standalone scripts that run exported files, one for each format. Only the hub format's script needs jaxvit."""
