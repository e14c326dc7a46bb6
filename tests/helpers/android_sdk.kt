// What the packages' sources call of Android, LiteRT and JUnit, so that kotlinc can check all that they say.
// Kotlin has one package a file: each part is written to a file of its own before it is compiled.

// FILE
package android.content

import android.content.res.AssetManager

abstract class Context {
    abstract val assets: AssetManager
    abstract val applicationContext: Context
}

// FILE
package android.content.res

import java.io.FileDescriptor
import java.io.InputStream

abstract class AssetManager {
    abstract fun open(path: String): InputStream
    abstract fun openFd(path: String): AssetFileDescriptor
}

abstract class AssetFileDescriptor : java.io.Closeable {
    abstract val fileDescriptor: FileDescriptor
    abstract val startOffset: Long
    abstract val declaredLength: Long
}

// FILE
package android.graphics

abstract class Bitmap {
    enum class Config { ARGB_8888, HARDWARE }

    abstract val width: Int
    abstract val height: Int
    abstract val config: Config?

    abstract fun copy(config: Config, mutable: Boolean): Bitmap

    abstract fun getPixels(pixels: IntArray, offset: Int, stride: Int, x: Int, y: Int, width: Int, height: Int)
}

object BitmapFactory {
    @JvmStatic
    fun decodeByteArray(data: ByteArray, offset: Int, length: Int): Bitmap? = null
}

// FILE
package android.os

class Bundle {
    fun putDouble(key: String, value: Double) = Unit
}

// FILE
package org.tensorflow.lite

import java.nio.ByteBuffer

interface Delegate : AutoCloseable

class Interpreter(model: ByteBuffer, options: Options) : AutoCloseable {
    class Options {
        fun setNumThreads(threads: Int): Options = this

        fun addDelegate(delegate: Delegate): Options = this
    }

    fun runSignature(inputs: Map<String, Any>, outputs: Map<String, Any>, signature: String) = Unit

    override fun close() = Unit
}

// FILE
package org.tensorflow.lite.gpu

class GpuDelegate : org.tensorflow.lite.Delegate {
    override fun close() = Unit
}

// FILE
package org.junit

annotation class Test

object Assert {
    @JvmStatic
    fun assertTrue(message: String, condition: Boolean) = Unit

    @JvmStatic
    fun assertTrue(condition: Boolean) = Unit
}

// FILE
package org.junit.runner

import kotlin.reflect.KClass

annotation class RunWith(val value: KClass<*>)

// FILE
package androidx.test.ext.junit.runners

class AndroidJUnit4

// FILE
package androidx.test.platform.app

import android.content.Context
import android.os.Bundle

abstract class Instrumentation {
    abstract val context: Context
    abstract val targetContext: Context

    abstract fun sendStatus(code: Int, results: Bundle)
}

object InstrumentationRegistry {
    @JvmStatic
    fun getInstrumentation(): Instrumentation = throw IllegalStateException()
}

// FILE
package repedge.net

/** Of newer standard libraries than Debian's kotlinc has. */
inline fun <T : AutoCloseable, R> T.use(block: (T) -> R): R = try { block(this) } finally { close() }

fun FloatArray.sumOf(part: (Float) -> Double): Double = fold(0.0) { sum, x -> sum + part(x) }
