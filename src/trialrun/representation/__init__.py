"""The representation family."""
