"""Tiny vision-language models of every supported family, made on the spot: no download, no torchvision."""
