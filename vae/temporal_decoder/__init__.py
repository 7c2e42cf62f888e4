"""The temporal VideoDecoder of image-to-video autoencoders such as Stable Video Diffusion's."""
