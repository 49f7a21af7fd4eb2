"""Promotion: the checks that decide whether a challenger replaces the champion."""
