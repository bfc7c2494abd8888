"""Make the pictures, tables, weights and models of this project."""
