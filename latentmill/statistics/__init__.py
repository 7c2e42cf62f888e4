"""The statistics of latents: pool them over rows, judge and fit a normalisation, find the rows furthest out."""
