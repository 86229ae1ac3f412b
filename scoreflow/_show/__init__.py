"""What a user sees: samples as pictures and files, objects as cards in a notebook."""
