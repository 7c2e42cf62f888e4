"""The temporal VideoDecoder family of image-to-video autoencoders of the SVD kind."""
