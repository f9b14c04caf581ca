"""Systems in, figures out."""
