// Package transform changes objects on their way back: other storage classes, other image registries, and
// Velero's resource modifiers as people have them. It is pure: nothing is read but the rules and the object.
package transform
