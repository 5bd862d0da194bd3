"""graftwork.serve"""
