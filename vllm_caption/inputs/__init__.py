"""Where items come from: JSON manifests, folders of images, tables, tars."""
