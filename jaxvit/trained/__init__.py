"""A trained model: loaded, evaluated, asked about images, looked into."""
