-- KEYS: 4 lease. ARGV: 3 upstream, 4 generation, 5 refused, 6 life in ms, 7 sealed.
local generation = tonumber(ARGV[4])
local fence = number(KEYS[4], 'fence')
if generation <= number(KEYS[4], 'g') then return {'old'} end
change('k', 'lease', 'u', ARGV[3])
redis.call('HSET', KEYS[4], 'g', whole(generation), 'refused', ARGV[5],
  'ends', whole(now + ARGV[6]), 'sealed', ARGV[7], 'fence', whole(math.max(fence, generation)))
return {'ok'}
