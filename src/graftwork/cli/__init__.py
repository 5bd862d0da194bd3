"""graftwork.cli"""
