"""The router bundle and the public model class that runs it."""
