"""Scaled dot-product attention: forward, backward and decoding, tile by tile."""
