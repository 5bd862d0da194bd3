"""graftwork.core"""
