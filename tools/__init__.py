"""Commands that make the pictures, tables, weights and models of this project."""
