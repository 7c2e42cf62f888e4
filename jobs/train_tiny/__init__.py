"""python -m jobs.train_tiny: train the VAE `tiny` on made videos and, where given, on real ones. Resumes."""
