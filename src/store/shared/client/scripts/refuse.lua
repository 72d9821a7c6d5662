-- KEYS: 4 lease. ARGV: 3 upstream, 4 generation.
local generation = tonumber(ARGV[4])
if generation ~= number(KEYS[4], 'g') or generation <= number(KEYS[4], 'refused') then
  return {'old'}
end
change('k', 'lease', 'u', ARGV[3])
redis.call('HSET', KEYS[4], 'refused', whole(generation))
return {'ok'}
