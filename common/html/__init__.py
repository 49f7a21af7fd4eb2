"""HTML pages: the templates, style sheet, number formats and SVG figures that all pages share."""
