"""Figures for papers, one file per kind; a new kind is found by discovery."""
