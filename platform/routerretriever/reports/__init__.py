"""Figures for people: tables, plots, pages."""
