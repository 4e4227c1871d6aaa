"""Statements sent to databases."""
