"""Where items come from: JSON files of designs, folders of images, tables, tars."""
