"""Tests of the techniques that change a model."""
