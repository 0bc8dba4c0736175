"""RankBench: what rank pairs, learning rates and alpha rules come to on small vision-language models.

Every run is trained to its end once and stored, so that methods are judged by replay.
"""
