"""Techniques: what makes a smaller model of a model, at some cost of accuracy."""
