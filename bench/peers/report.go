package main

func (r *results) report(string) []byte { return nil }
