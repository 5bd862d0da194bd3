"""graftwork.schema"""
