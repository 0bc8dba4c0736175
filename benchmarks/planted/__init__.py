"""Planted studies: calibrations whose true loss surface is known, and the rules that choose from them."""
