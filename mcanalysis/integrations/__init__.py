"""Where users already are: what plugs into trainers and evaluation harnesses of others."""
