"""RankBench on disk: its backbones, the blocks that were trained, and training what is missing."""
