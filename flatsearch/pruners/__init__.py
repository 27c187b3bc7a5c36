"""Pruners, one public class a file, and what they share."""
