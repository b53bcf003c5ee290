"""Tests; a package so that worker processes can import the fake trial and the slow twins."""
