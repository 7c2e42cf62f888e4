"""The stream: shards of video in, shards of latents out. `pipeline.run` shows it whole."""
