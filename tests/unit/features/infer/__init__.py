"""Tests of the inference of schemas."""
