"""Where items come from: manifests today."""
