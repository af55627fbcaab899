"""How the bundled model is made; nothing here is needed to caption.

`python -m tools.demo_model.train` trains, `.evaluate` measures, `.draw` draws labelled pictures.
"""
