from tests.text.checkpoints import encoders as encoders
